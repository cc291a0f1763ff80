"""The chat template, from a conversation to token ids. `ChatTemplate` (template.py) has one method for each step:

1. `render` (rendering/renderer.py): messages -> `RenderedChat`, the text with the span of each message's content, which
   rendering/marks.py locates; rendering/as_read.py gives reasoning and calls that texts hold keys of their own.
2. `loss_spans` (loss_spans.py, turns.py): rendered chat -> `LossSpan`s, the characters whose tokens count in the loss;
   of which messages, train_on.py says.
3. `segment_chat`, `segment_pair`, `segment_text`: both steps, and the text split at the spans -> `SegmentedRow`.
4. `tokenize` (tokenize.py): segments -> token ids. control.py finds text that spells special tokens, to escape it.

A row that fails a step raises `BadRow` with its `DropReason`. `load_template` loads a template by name, after
probe.py has determined how to find loss spans in it; notes.py is what a run logs about it. parts.py divides turns where
`data.train_on` names parts; unprinted.py names what a row says and the template does not print.
"""
