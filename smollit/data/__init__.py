"""Rows of chats and preferences -> batches. The steps of a row:

 1. sources/files.py, readers.py     the files of a split, and the rows in them
 2. sources/source.py, mixture.py    one split of one data set (`Source`); several with weights and caps (`Part`)
 3. formats/detection/detect.py     which format the rows have: detected once per part
 4. formats/converters.py            a row -> `Conversation`, `Preference` or `Text`
 5. template/template.py             rendered by the chat template (`render`), its loss spans found (`loss_spans`),
                                     split into segments, each tokenized separately (`tokenize`)
 6. encoding/truncate.py             truncated to `max_length`
 7. encoding/steps.py                token ids and loss spans: the example. encoding/encoder.py runs steps 4 to 7 on
                                     batches of rows
 8. encoding/cache.py, report.py     good examples go into the Arrow cache, dropped rows into the report
 9. encoding/select.py               examples that repeat, or that validation has too, are left out
    batching/dataset.py, documents.py  the examples of all parts of a split; pairs of one prompt joined to a document
10. batching/sampler.py, packing.py  which documents make up which batch; of streamed rows, batching/streaming.py
11. batching/collate.py              documents -> `Batch` (smollit/batch.py)

A row that can't be used raises `BadRow(DropReason, detail)` of formats/drop_reason.py; it is counted and named.
The data module is built in files that inherit from one another: rows.py has the settings of steps 1 to 4, templated.py
the chat template of step 5; tokenized.py runs steps 1 to 9, batched.py step 10, and datamodule.py makes the loaders.
Rooms import only rooms of earlier steps.
"""

from smollit.data.datamodule import ChatDataModule
from smollit.data.sources.mixture import Part
from smollit.data.ultrachat import UltraChatDataModule
from smollit.data.ultrafeedback import PreferenceDataModule, UltraFeedbackDataModule

__all__ = ["ChatDataModule", "Part", "PreferenceDataModule", "UltraChatDataModule", "UltraFeedbackDataModule"]
