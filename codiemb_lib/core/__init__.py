"""What every room may stand on.

A preset (`load_preset`) says what an experiment is. `run_folder` and its like say where its results
lie, `write_manifest` and `collect` what they are. `atomic_path`, `alone` and the writers on top of
them leave whole files, also behind a kill. The words for tasks and metrics stand here, and the base
of all errors.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "files": [
            *["PACKED", "alone", "atomic_path", "check_writable", "scratch_beside"],
            *["data_root", "project_root", "UnwritableError"],
            *["parse_json", "read_json", "read_text", "write_json", "write_text"],
            *["damaged", "sha256_file", "sha256_files", "sha256_folder", "sha256_text"],
        ],
        "merge": ["FusionStudy", "METHODS", "Merge", "soup_of"],
        "preset": [
            *["Preset", "PresetError", "load_preset", "preset_path"],
            *["DatasetSettings", "EncoderSettings", "LoraSettings", "MineSettings"],
            *["ObjectiveSettings", "Prompts", "TaskWeights", "VariantSettings"],
        ],
        "runs": [
            *["figures_folder", "model_folder", "preset_folder", "run_folder"],
            *["is_complete", "manifest_of", "write_manifest"],
            *["git_commit", "hardware", "peak_memory_mib", "versions"],
            *["collect", "kept_of", "label_rows", "publish", "rows_file", "t_interval"],
            *["write_arrays", "write_rows"],
        ],
        "settings": ["Settings", "explain", "read_settings"],
        "words": [
            *["MAIN_METRIC", "UNSEEN", "Task", "CodiembError", "say_once"],
            *["layer_of", "normalise", "task_means", "unknown"],
        ],
    },
)
