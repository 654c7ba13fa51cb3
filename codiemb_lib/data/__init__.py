"""Files and names to records: the unified record, the forms that users have, the registry, leaks.

A data set is asked for by a name of `data/registry.yaml` or by a path (`load_dataset`), or all sets
of a preset at once (`load_datasets`); its splits hold Records. `read_file` and its like turn files
of other forms into Records, `write_splits` writes them. What a script of data/build needs to make a
set of its own kind stands here too.
"""

import lazy_loader

# Raised when numbers are meant to change (CONTRIBUTING.md). 1: those of the first golden values.
# 2: 2026-12-01: rows of one query are one record in JSON too: squad-sentences has fewer records.
# 3: 2026-12-01: combining marks count when texts are compared; squad-sentences alone has any.
NUMERICS = 3

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "datasets": [
            *["Dataset", "check_tasks", "describe", "load_dataset", "load_datasets"],
            *["cut_dev", "hold_out", "split_at", "split_of"],
            *["origin_of", "split_lines", "write_splits"],
        ],
        "formats": ["read_beir", "read_beir_corpus", "read_file", "read_hub"],
        "leaks": ["NearDuplicates", "find_leaks", "leak_counts", "remove_leaks"],
        "records": [
            "Record",
            "RecordError",
            "SourceError",
            "answers_of",
            "say_grades",
            "to_json",
            "write_jsonl",
        ],
        "registry": ["DatasetError", "list_datasets", "public_files"],
    },
)
