"""Files to records: the unified record, the forms that users have, the registry, leaks."""

import lazy_loader

# Raised when numbers of this room are meant to change: what was computed under another one is
# stale. A line for each rise: its number, date and reason.
# 1: the numbers that the first golden values pin.
NUMERICS = 1

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "datasets": [
            "Dataset",
            "describe",
            "hold_out",
            "load_dataset",
            "load_split",
            "split_lines",
            "write_splits",
        ],
        "formats": [
            "Columns",
            "SPLITS",
            "Scale",
            "has_corpus",
            "read_beir",
            "read_beir_corpus",
            "read_hub",
            "read_pairs",
            "read_path",
            "read_sts_table",
        ],
        "leaks": ["check_tasks", "find_leaks", "leak_counts", "load_datasets", "remove_leaks"],
        "records": ["Record", "RecordError", "to_json", "write_jsonl"],
        "registry": ["CutEntry", "list_datasets", "public_files"],
    },
)
