"""Fields of transformers' and TRL's configs that have no effect, by their names or patterns, with the reasons."""

_EVALUATIONS = "evaluations grow conversations, max_rows at a time"
_RECORDS = "records are the token ids of whole contexts and probes"
_PROBES = "trees hold the probes already"
_PPO = "PPO does not read it (GRPO may)"

BY_ALL = dict.fromkeys(
    (
        "per_device_eval_batch_size", "eval_accumulation_steps", "eval_do_concat_batches", "eval_use_gather_object",
        "prediction_loss_only", "include_for_metrics", "batch_eval_metrics", "*_full_eval", "eval_packing",
        "num_generations_eval", "do_predict",
    ),
    _EVALUATIONS,
) | dict.fromkeys(
    (
        "dataset_*", "length_column_name", "packing_strategy", "truncation_mode", "assistant_only_loss",
        "precompute_ref_batch_size",
    ),
    _RECORDS,
)  # fmt: skip

BY_GROUPS = dict.fromkeys(
    (
        "use_vllm", "vllm_*", "use_transformers_*", "transformers_continuous_batching_config", "min_p",
        "generation_kwargs", "chat_template_kwargs", "cache_implementation", "ds3_gather_for_generation",
        "max_tool_calling_iterations", "log_multimodal",
    ),
    _PROBES,
) | {"train_sampling_strategy": "the order of groups is that of shuffle_dataset"}  # fmt: skip

BY_GFN = dict.fromkeys(
    (
        "epsilon", "epsilon_high", "normalize_advantages", "reward_clip_range", "mask_truncated_completions",
        "router_aux_loss_coef",
    ),
    "the loss of GFN compares rewards with log-probabilities as they are",
)  # fmt: skip
BY_GFN |= dict.fromkeys(("sync_ref_model", "ref_model_*"), "the baseline stays as it is")

BY_SFT = {"shuffle_dataset": "the order of cases is that of train_sampling_strategy"}

BY_PPO = dict.fromkeys(
    (
        # training
        "label_smoothing_factor", "neftune_noise_alpha", "torch_empty_cache_steps", "auto_find_batch_size",
        "average_tokens_across_devices", "include_num_input_tokens_seen", "use_liger_kernel", "liger_kernel_config",
        "use_cache", "full_determinism", "data_seed", "accelerator_config", "parallelism_config",
        "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph",
        # its data loader
        "dataloader_drop_last", "remove_unused_columns", "label_names", "train_sampling_strategy", "ignore_data_skip",
        # logging, checkpoints and evaluations
        "logging_nan_inf_filter", "log_level", "log_level_replica", "debug", "enable_jit_checkpoint",
        "restore_callback_states_from_checkpoint", "eval_on_start", "num_sample_generations",
        # fields that TRL's scripts read, or that TRL sets by itself
        "sft_model_path", "reward_model_path", "model_adapter_name", "ref_adapter_name", "stop_token_id", "world_size",
        "num_total_batches", "micro_batch_size", "local_batch_size", "batch_size", "local_mini_batch_size",
        "mini_batch_size",
    ),
    _PPO,
)  # fmt: skip
