"""Writes docs/cases.md and docs/promises.md: which test holds which bug report and which promise.

Run: python docs/make_cases.py. A test that holds a case has the line `# case: <id>` above it; one that holds a promise
of the README and the docs, `# promise: <id>`.
"""

import re
from collections import defaultdict
from collections.abc import Container
from pathlib import Path

MARK = re.compile(r"^\s*# (?P<kind>case|promise): (?P<ids>[\w\-, ]+)$")
TEST = re.compile(r"^\s*(async )?def (?P<name>test_\w+)")
CASES = {
    "mask-01": "Turn-end / EOS token never trained because pad id equals EOS id",
    "mask-02": "Truncation removes the whole answer: all labels -100, NaN loss (or a false 0.0)",
    "mask-03": "Chat template without generation markers gives an all-zero assistant mask",
    "mask-04": "End-of-turn token differs from tokenizer.eos_token and stays masked",
    "mask-05": "Multi-turn: spans found by searching marker strings hit the wrong turns or none",
    "mask-06": "Truncated assistant turn gets mask 0 although its first part is kept",
    "mask-08": "Prompt is trained although the user expects masking (defaults unclear)",
    "mask-10": "Prompt header trained: role header or empty-think prefix counted as answer",
    "mask-11": "Span ending at token 0 or on stripped whitespace trains all that follows",
    "template-01": "Default system prompt silently added (and added again inside answers)",
    "template-02": "Double BOS: template text already has BOS and the tokenizer adds one more",
    "template-03": "content null / missing key crashes or prints the word None",
    "template-04": "Base model has no chat template",
    "template-06": "BOS is None or equals a role marker",
    "template-07": "Content as a list of parts on a text-only model",
    "template-08": "Template with new tokens: ids without trained embeddings, stale bos/pad",
    "template-10": "Tool / unknown roles rejected or crash",
    "template-11": "Text in messages that spells control tokens",
    "data-01": "Cached tokenized data reused after template / tokenizer / option change",
    "data-02": "Prompt/answer boundary merges into one token",
    "data-03": "Whole conversations passed as chosen/rejected get the prompt twice",
    "data-06": "Prompt longer than the limit",
    "data-08": "Ranks with unequal batch counts hang",
    "data-09": "Silent truncation by default",
    "data-11": "Wrong role in a preference answer",
    "data-12": "Preprocessing runs once per rank or times out at 30 minutes",
    "data-13": "Iterable data: each worker / rank yields everything",
    "data-15": "Padding before truncation, and pad_to_multiple_of",
    "packing-01": "Packed documents see each other",
    "packing-02": "Packing drops or splits overflow",
    "packing-03": "Packing ignores the loss mask",
    "packing-05": "Packing switched off silently / backend not fit",
    "dpo-loss-01": "Loss stays at 0.6931",
    "dpo-loss-02": "Reference values in eval come from the trained policy",
    "dpo-loss-03": "Precomputed reference values read wrongly or not at all",
    "dpo-loss-04": "Reference in train mode / dropout noise",
    "dpo-loss-05": "Gradient accumulation scales preference loss",
    "dpo-loss-06": "Log-probs summed in bf16",
    "dpo-loss-07": "Reference trained, decayed, or in the optimizer",
    "dpo-loss-08": "EOS hidden in attention or dropped from answers",
    "dpo-loss-09": "Prompt tokens counted in the answer log-probs",
    "dpo-loss-10": "Sum versus mean of token log-probs mixed up",
    "dpo-loss-11": "Chosen loss type or smoothing silently ignored",
    "dpo-loss-12": "Left padding without positions",
    "dpo-loss-14": "FSDP / multi-device reference placement",
    "dpo-loss-16": "Rewards of chosen fall — users think it is broken",
    "metrics-01": "Gradient accumulation weights micro-batches, not tokens",
    "metrics-02": "Mean of means across ranks",
    "metrics-03": "Eval loss depends on batch size",
    "metrics-04": "Last, partial accumulation window gets a smaller gradient",
    "metrics-06": "Eval loss multiplied by world size",
    "metrics-07": "sync_dist mean with unequal counts is inflated",
    "metrics-08": "DPO metrics are rank 0's, last micro-batch's, or summed",
    "metrics-09": "Eval keeps all logits",
    "metrics-10": "MeanMetric surprises",
    "metrics-12": "Token accuracy / token counts off by the shift",
    "metrics-13": "Different metric keys per rank or step",
    "metrics-15": "Throughput and seen-token numbers misleading",
    "precision-01": "HF model stays in eval mode for all training",
    "precision-02": "Model loads in bf16 by default and is trained in pure bf16",
    "precision-03": "NaN loss run finishes green",
    "precision-04": "fp16: unscale error, NaN",
    "precision-05": "Fused AdamW + clipping with scaler",
    "checkpoint-01": "Resume fails: weights-only unpickling",
    "checkpoint-02": "Reference copied into every checkpoint",
    "checkpoint-03": "Preemption: SIGTERM / Ctrl-C saves nothing",
    "checkpoint-05": "Interrupted write / delete-before-save",
    "checkpoint-07": "Checkpoints pile up",
    "checkpoint-08": "hparams carry the model or tokenizer",
    "checkpoint-09": "Weights-only file used for resume",
    "checkpoint-10": "Metric names with '/' make folders",
    "resume-01": "Mid-epoch resume repeats seen rows and skips unseen ones",
    "resume-02": "Learning rate / optimizer state lost or frozen",
    "resume-03": "Checkpoint taken exactly at an epoch's end, or in epoch >= 1, resumes wrongly",
    "resume-05": "RNG not restored: other dropout/order after resume",
    "resume-06": "Batch size, accumulation or ranks changed between runs",
    "resume-09": "Callback resumes although nobody asked",
    "export-01": "Exported chat model does not stop: eos in generation_config is wrong",
    "export-02": "Tied embeddings saved twice or lost",
    "export-04": "Weights-only or foreign checkpoint cannot be exported",
    "export-05": "fp32 export doubles size; dtype surprises",
    "cli-01": "Scheduler steps per epoch",
    "cli-02": "Command-line values lose against the checkpoint on resume",
    "cli-03": "Config round trip",
    "cli-04": "Unknown keys",
    "cli-05": "Resume refuses own checkpoint because of class path / link keys",
    "cli-08": "Saved config.yaml blocks the next run",
    "cli-09": "val_check_interval counts micro-batches",
    "cli-10": "Lists in later configs replace earlier ones",
    "cli-11": "max_steps vs accumulation / drop_last mismatch",
    "cli-13": "Changing class_path drops arguments",
    "cli-14": "'None' versus null",
    "fsdp-01": "Gradient clipping by norm refused",
    "fsdp-02": "Tied weights split over units",
    "fsdp-04": "Accumulating in 16-bit",
    "perf-01": "DDP + checkpointing: parameter ready twice",
    "perf-02": "Out of memory late in the run",
    "perf-03": "DPO needs huge logits memory",
    "perf-04": "Gradient checkpointing with frozen inputs / wrong variant",
    "ux-02": "Start-up summary lacks train mode, dtype and trained-token share",
}

# The second set: where smollit meets the world outside. One that no test holds yet is shown as open.
CASES_2 = {
    "A1": "Early stopping never fires when validation is counted in steps, and a finished run starts again",
    "A2": "The best checkpoint is named with the metric of an earlier validation",
    "A3": "Nothing keeps or exports the best checkpoint; `best` is no path",
    "A4": "overfit_batches takes other rows in each epoch",
    "A5": "The rate that LearningRateFinder found lasts one step",
    "A6": "Loggers by name end in tracebacks; a resumed run splits or loses their rows",
    "A7": "trainer.logged_metrics is empty",
    "A8": "Misspelt or impossible trainer settings end in tracebacks or in silence",
    "A9": "A negative gradient_clip_val turns the gradients round",
    "A10": "A Trainer of one's own breaks other modules, callbacks, flags and tuners",
    "B1": "The newest checkpoint is found by file time",
    "B2": "Another batch size, accumulation or number of devices on resume breaks the number of steps",
    "B3": "A changed schedule on resume takes the old run's rate",
    "B4": "Changed content under the same path is resumed in silence",
    "B5": "Weights that are not finite overwrite the last checkpoint; skipped steps are silent",
    "B6": "A stop near a due validation loses that validation",
    "B7": "Points of a curve stand twice after a kill",
    "B8": "Two runs write into one folder",
    "B9": "Code in a checkpoint folder is executed",
    "B10": "`~` or a URL as run folder",
    "B11": "Full disk, read-only folder, a file in the way",
    "B12": "A damaged cache fails at each start, with no file named",
    "B13": "A killed export leaves a whole model behind",
    "B14": "Ctrl-C during start-up exits with 1; SIGHUP is not handled",
    "B15": "seed_everything does not change the run; answers depend on the batch size",
    "C1": "Warm-up starts at learning rate 0",
    "C2": "`schedule: constant` with warm-up has none",
    "C3": "A run that trained nothing ends as if all were well",
    "C4": "Weight decay falls on norms too",
    "D1": "YAML 1.1 booleans and octals; a repeated key drops the first block",
    "D2": "Flags before --config are lost",
    "D3": "Wrong values end in thirty lines of unions",
    "D4": "The help lacks settings",
    "D5": "Settings without effect are accepted in silence",
    "D6": "config.yaml of a run holds two learning rates",
    "D7": "Not a terminal: hundreds of bar states, no loss",
    "D8": "The bar counts micro-batches of an epoch and does not fit 80 columns",
    "D9": "Settings of other tools have no hint",
    "D10": "load_from_checkpoint from another folder",
    "E1": "transformers 4 reads another rope_theta from the export",
    "E2": "transformers 4 can't load the exported tokenizer",
    "E3": "Generation settings of the source are dropped",
    "E4": "The export has no model card",
    "E5": "Answers past the model's positions",
    "E6": "A vocabulary larger than the model is an IndexError in estimate",
    "F1": "What a template does not print is lost in silence",
    "F2": "`tools` and `chat_template_kwargs` of a row don't reach the template",
    "F3": "Thumbs-down answers of a boolean label are trained",
    "F4": "Advice that loses a column",
    "F5": "Flat messages, history and images are trained as text",
    "F6": "A line that is not JSON is noticed after minutes",
    "F7": "System texts of pairs are lost",
    "F8": "`left-turns` drops rows that have a window that trains",
    "F9": "Configurations and revisions of a data set can't be named",
    "F10": "Odd turns can only be dropped",
    "F11": "Ranked lists, label columns and nested columns need other files",
    "F12": "Small shapes are misread or refused with the wrong cause",
    "F13": "Findings are printed twice, or blame the wrong cause",
    "G1": "Families whose documents see each other in silence",
    "G2": "Sliding windows are refused",
    "G3": "Scaled or capped logits and heads with a bias are refused",
    "G4": "Layers that are not attention can't be trained at all",
}

PROMISES = {
    "loss-tokens": "Only the assistant's turns count in the loss, with the token that ends them",
    "control-text": "Text that spells a control token opens and ends no turn",
    "dropped-rows": "A row that can't be used is counted and named; too many of them stop the run",
    "identical-pairs": "A data set whose chosen and rejected responses are the same text is refused, with the reason",
    "one-step": "1 x 8, 2 x 4 and 8 x 1 micro-batches give the same weights",
    "many-machines": "torchrun over two nodes resumes the run of one process, to 1e-6; SLURM's requeue resumes",
    "slow-precision": "A run whose precision is slow on its device says so at the start, with the setting to change",
    "step-rows": "`data.global_batch_size` keeps the rows and the learning rate of each step on any number of devices",
    "devices": "1 and 2 processes give the same weights, with ddp and with fsdp2",
    "other-devices": "A run goes on with other devices and another strategy, with the rows and losses of one device",
    "rank-faults": "A save that fails on one rank ends all of them with its sentence",
    "exact-metrics": "Each logged point is the mean over all that was seen since the last point",
    "non-finite-dump": "A step that is not finite leaves its rows and settings in a file, and is made again from it",
    "quantize": "A run with LoRA on weights in 4 bits resumes to the bit, and exports the model that was trained",
    "adapters": "A run with LoRA resumes to the bit, and its reference is the policy without the adapter",
    "resume": "A stopped run, started again by the same command, ends in the same weights, to the bit",
    "mixtures": "Parts of a mixture are seen as often as their weights say",
    "row-filters": "`data.where` runs nothing but columns and listed functions; rows that are left out are counted",
    "select": "`data.select` keeps the best pairs by their scores, or by values of the reference",
    "own-data": "Five lines of JSON, `init` and three settings are enough for a run",
    "own-rows": "`data.convert` reads rows of any shape, and its errors name function and row",
    "any-row": "Of a row of any content comes an example, or a counted reason",
    "unprinted": "What a row says and its template does not print is named with its weight",
    "tools": "Tools, reasoning and switches of a row reach the template as transformers passes them",
    "templates": "At least 62 of the 72 chat templates that TRL ships are read, and none wrong",
    "same-tokens": "All that changes tokens is part of the cache key, and a resumed run may not change it",
    "second-start": "A second start tokenizes nothing",
    "packing": "Packing keeps each example whole, and no sequence is too long",
    "shared-prompts": "All pairs of a prompt cost the prompt once, with the losses and gradients of separate pairs",
    "named-sets": "Named validation sets have curves of their own, and one over all their tokens",
    "seed": "The order of the rows follows `seed_everything`, and a resumed run keeps its first seed",
    "losses": "Each loss and its gradient are those of its paper's equation",
    "schedules": "Learning rates after the warm-up are those of transformers, to the bit",
    "families": "The table of model families says what is right, against transformers' own logits",
    "precomputed": "A precomputed reference gives the losses of a frozen one, and a killed pass scores what is missing",
    "averages": "Averaged weights and a reference that follows the policy are resumed",
    "stops": "Ctrl-C, SIGTERM and SIGHUP finish the step and save; the exit code is the shell's",
    "other-steps": "A run resumes with another batch size, accumulation, schedule or number of steps",
    "plain-trainer": "A plain Lightning Trainer resumes at the right batch",
    "due-validation": "A validation that a stop left out is made up",
    "same-content": "Other rows, tokenizer, template or reference under the same name are refused on resume",
    "finite": "Weights that are not finite are never saved; five lost steps in a row end the run",
    "nothing-trained": "A run that trained nothing ends with the cause",
    "whole-files": "A full disk leaves the earlier checkpoints whole, and is a sentence",
    "checksums": "A flipped byte in a checkpoint is named",
    "best": "`trainer.keep_best` keeps the checkpoint of the best validation",
    "one-run": "A second run in a run folder is refused, and changes nothing",
    "no-code": "No code runs from a model, a tokenizer, or a folder of shards",
    "sentences": "A changed config ends well or in a sentence, not in a traceback",
    "with-effect": "A setting without effect is refused",
    "loggers": "Any Lightning logger works by its short name, and several do",
    "dashboard": "TensorBoard shows the metrics that matter first",
    "console": "The progress bar counts steps of the run in 80 columns; files get plain lines",
    "diagnostics": "Diagnostics of pairs are exact over batches and sets",
    "replay": "`replay` makes any step of a run again, to the bit",
    "diff": "`diff` names the first step at which two runs differ, and its cause",
    "predict": "`predict` responds as transformers does, and continues after a kill",
    "init": "`init` writes a config that works from any folder",
    "doctor": "`doctor` finds what would fail later",
    "lock-file": "`make lock` writes the hash of each package",
    "turn-end": "An exported model stops at the end of a turn",
    "other-readers": "An export gives the same logits, ids and chats in transformers 4.57 as in 5",
    "certificate": "An export has a model card, and a certificate of what it was made of",
    "push": "An export is pushed with a card that names its repository",
    "no-waits": "No micro-batch waits for the device",
    "one-gpu": "A run on one GPU, emulated on a CPU, has the losses of the CPU in each precision",
    "few-launches": "A micro-batch needs few operations: SFT of 32 chats below 6,000, DPO of 8 pairs below 8,000",
    "varlen": "One call per layer computes what `documents` computes; a kernel is compared with it before it is used",
    "compile": "`model.compile` makes one graph for each kind of layer",
    "token-budget": "`data.max_batch_tokens: auto` fills the memory that a trial finds",
    "gpu-report": "`benchmarks/gpu.sh` keeps what each part has said, and its dry run has all parts",
    "reduced-once": "Gradients are reduced once per optimizer step, with ddp and fsdp2",
    "nothing-global": "Importing smollit changes nothing global",
    "rooms-of-code": "No file imports what the plan of rooms does not allow",
    "private-names": "Private names of other libraries are listed, each with its reason",
    "boundary": "No token crosses from a prompt into its response",
    "streams": "Ranks and workers share the rows of a stream, each row once per epoch",
    "damaged-cache": "A damaged cache is named and made anew",
    "log-two": "The first loss of DPO is ln 2, and the reference is never trained",
    "attention-check": "A model's attention is compared with transformers' when it is loaded",
    "logits-check": "Scaled, capped and biased logits are part of the chunked head",
    "chunked-head": "The chunked heads give the log-probabilities and gradients of all logits at once",
    "adamw": "AdamW of fp32 weights is torch's, to the bit; small updates of bf16 weights add up",
    "decay": "Weight decay spares one-dimensional weights; a rate may depend on the weight's name",
    "shards": "Folders of shards are whole, verified, and resumed from",
    "nothing-to-do": "A finished run that is started again changes no file",
    "samples": "Sample generations do not change the run",
    "throughput": "Throughput counts every token once, and no padding",
    "out-of-memory": "A run that runs out of memory names the settings that need less",
    "killed-export": "What a killed export left is removed at the next start",
    "ray": "Two workers of Ray Train make the steps of one process",
    "chat": "`chat` responds as transformers does, and remembers the conversation",
    "votes": "Votes between two models are preference rows that `fit` takes",
    "score": "`score` measures what `validate` measures, with intervals",
    "verify": "`verify` names each fault of an exported folder, and fails",
    "curves-once": "Each step stands once in TensorBoard and in metrics.csv, over stops, kills and resumes",
    "end-summary": "A finished run says what was learned, where its files are, and what to type next",
    "older-runs": "A run of the version before resumes to the same weights, to the bit",
    "golden": "The losses of both demo runs stay as they are, to the last digit",
    "export": "An export is read back and compared before it is called done",
    "separate-documents": "Packed documents never see each other; the prompt of a pair is computed once",
    "trl": "Losses and metrics equal TRL's",
    "formats": "Every listed format is read from every listed kind of file",
    "inspect": "`inspect` shows what training gets",
    "python": "docs/python.md and the notebook run; models, rows and adapters in memory train as those of files do",
    "import": "Configs of TRL, axolotl and LLaMA-Factory become configs of smollit, setting by setting",
    "sweep": "A sweep that was killed continues by the same command, and repeats no run that has ended",
    "rows": "`report --rows` finds swapped pairs from what training says about each row",
    "agents": "A program that follows AGENTS.md gets from a CSV file to a verdict in six commands",
    "site": "The docs build as a site without a warning",
    "verdict": "`report` says in words what a run has learned, with the numbers that show it",
    "estimate": "`estimate` says memory, steps and time before anything is spent",
    "every-config": "Every shipped config runs",
    "every-command": "Every command in the docs is one that the parser accepts",
    "every-setting": "Every setting has a help text, and the list of settings is frozen",
    "lightning": "SmollitTrainer does what Lightning's Trainer does, with any LightningModule",
    "own-parts": "A loss, format, data module, callback or module of your own is named in the config",
    "demo-learns": "`make demo` trains a model that learns",
    "demo-manners": "DPO's demo changes manners that one can read, for prompts that were not trained",
}

CASES_HEAD = """# Public bug reports, and the tests that hold them

The reports come from the issue threads of the tools that people use for this work today. Written by
`python docs/make_cases.py` from the comments `# case: <id>` in the tests.

| report | held by |
|---|---|
"""
PROMISES_HEAD = """# What smollit promises, and the tests that hold it

Each line is a promise of the README or the docs. Written by `python docs/make_cases.py` from the comments
`# promise: <id>` in the tests.

| promise | held by |
|---|---|
"""


def held(root: Path, kind: str) -> dict[str, list[str]]:
    """Id -> `file::test` of each test that holds it; `kind` is `case` or `promise`."""
    found: dict[str, list[str]] = defaultdict(list)
    for file in sorted((root / "tests").rglob("test_*.py")):
        waiting: list[str] = []
        for line in file.read_text(encoding="utf-8").splitlines():
            if mark := MARK.match(line):
                waiting += re.split(r"[,\s]+", mark["ids"].strip()) if mark["kind"] == kind else []
            elif (test := TEST.match(line)) and waiting:
                for name in dict.fromkeys(waiting):
                    found[name].append(f"{file.relative_to(root)}::{test['name']}")
                waiting = []
    return found


def rows(root: Path, kind: str, titles: dict[str, str], *, may_be_open: Container[str] = ()) -> str:
    """One row of the table for each id.

    Raises:
        ValueError: If a test names an id that does not exist, or no test holds one that may not be open.
    """
    tests = held(root, kind)
    unknown = set(tests) - set(titles)
    missing = [name for name in titles if name not in tests and name not in may_be_open]
    if unknown or missing:
        raise ValueError(f"{kind}s that do not exist: {sorted(unknown)}; that no test holds: {missing}")
    holders = {name: "<br>".join(f"`{test}`" for test in tests.get(name, [])) for name in titles}
    return "".join(f"| {name}: {title} | {holders[name] or 'open'} |\n" for name, title in titles.items())


def pages(root: Path) -> dict[str, str]:
    """The text of each page by its name."""
    all_cases = CASES | CASES_2
    num_open = len(set(CASES_2) - set(held(root, "case")))
    end = f"\n{len(all_cases) - num_open} of {len(all_cases)} are held.\n"
    cases = CASES_HEAD + rows(root, "case", all_cases, may_be_open=CASES_2) + end
    return {"cases.md": cases, "promises.md": PROMISES_HEAD + rows(root, "promise", PROMISES)}


if __name__ == "__main__":
    here = Path(__file__).parent
    for page, text in pages(here.parent).items():
        (here / page).write_text(text, encoding="utf-8")
