# Completion of smollit's commands and settings. Written by docs/make_schema.py.
# bash: source this file in ~/.bashrc; zsh: autoload -U bashcompinit && bashcompinit, then the same.
_smollit() {
  local word="${COMP_WORDS[COMP_CWORD]}" words="" settings="--model.adapter --model.attention --model.beta2_half_life --model.chunk_size --model.compile --model.decay_all --model.dropout --model.gradient_checkpointing --model.init_from --model.learning_rate --model.learning_rate_factors --model.loss --model.max_new_tokens --model.model_name --model.non_finite --model.num_warmup_steps --model.optimizer --model.quantize --model.reference --model.reference_name --model.schedule --model.temperature --model.warmup_ratio --model.weights --data.add_tokens --data.cache_dir --data.chat_template --data.chat_template_kwargs --data.columns --data.control_text --data.convert --data.dataset --data.dedup --data.default_system --data.drop_val_rows --data.extra_roles --data.format --data.global_batch_size --data.group_by_length --data.longest_first --data.max_batch_tokens --data.max_dropped_share --data.max_length --data.max_rows --data.min_score_gap --data.num_proc --data.num_workers --data.odd_turns --data.pack_length --data.packing --data.pad_to_multiple_of --data.pairs_of --data.predict_split --data.revision --data.score_ties --data.seed --data.select --data.select_share --data.shuffle --data.shuffle_buffer --data.streaming --data.subset --data.test_split --data.tokenizer_name --data.train_batch_size --data.train_on --data.train_split --data.truncate --data.val_batch_size --data.val_sets --data.val_split --data.where --trainer.accelerator --trainer.accumulate_grad_batches --trainer.barebones --trainer.benchmark --trainer.callbacks --trainer.check_val_every_n_epoch --trainer.checkpoint_every_n_steps --trainer.default_root_dir --trainer.detect_anomaly --trainer.deterministic --trainer.devices --trainer.enable_autolog_hparams --trainer.enable_checkpointing --trainer.enable_model_summary --trainer.enable_progress_bar --trainer.fast_dev_run --trainer.force_resume --trainer.gradient_clip_algorithm --trainer.gradient_clip_val --trainer.inference_mode --trainer.keep_best --trainer.keep_checkpoints --trainer.limit_predict_batches --trainer.limit_test_batches --trainer.limit_train_batches --trainer.limit_val_batches --trainer.log_every_n_steps --trainer.logger --trainer.max_epochs --trainer.max_steps --trainer.max_time --trainer.min_epochs --trainer.min_steps --trainer.model_registry --trainer.num_nodes --trainer.num_sanity_val_steps --trainer.overfit_batches --trainer.plugins --trainer.precision --trainer.profiler --trainer.reload_dataloaders_every_n_epochs --trainer.strategy --trainer.sync_batchnorm --trainer.use_distributed_sampler --trainer.val_check_interval --trainer.val_every_n_steps"
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "fit sweep inspect estimate report drill replay diff validate test chat predict score export verify init import doctor" -- "$word"))
    return
  fi
  case "${COMP_WORDS[1]}" in
    fit) words="--ckpt_path --config $settings" ;;
    sweep) words="--metric --json --ckpt_path --config $settings" ;;
    inspect) words="--split --template --row --num_rows --find --problems --ids --histogram --json --strict --in_full --ckpt_path --config $settings" ;;
    estimate) words="--time_probe --json --ckpt_path --config $settings" ;;
    report) words="--output --rows --json" ;;
    drill) words="--kills --steps --seed --faults --json --ckpt_path --config $settings" ;;
    replay) words="--step --run_folder --text --json --ckpt_path --config $settings" ;;
    diff) words="--json" ;;
    validate) words="--ckpt_path --verbose --config $settings" ;;
    test) words="--ckpt_path --verbose --config $settings" ;;
    chat) words="--system --temperature --max_new_tokens --ab --votes --seed" ;;
    predict) words="--ckpt_path --prompts --config $settings" ;;
    score) words="--chats --pairs --reference --ifeval --gsm8k --tasks --apply_chat_template --max_rows --max_length --max_new_tokens --batch_size --html --json" ;;
    export) words="--ckpt_path --output --dtype --form --push_to_hub --private --config $settings" ;;
    verify) words="--json" ;;
    init) words="" ;;
    import) words="--output --json --check" ;;
    doctor) words="--json" ;;
  esac
  case "$word" in
    -*) COMPREPLY=($(compgen -W "$words --help" -- "$word")) ;;
    *) COMPREPLY=($(compgen -f -- "$word")) ;;
  esac
}
complete -o filenames -F _smollit smollit
