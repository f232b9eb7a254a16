"""Dataset readers: JSONL, CSV, Parquet, plain text, OpenAI-batch lines, Python items.

Every reader streams: memory holds one line (or one Parquet batch), never the file. A line that
cannot become a prompt becomes a PromptRequest that carries its error; only a file that cannot be
read at all raises. Indexes count prompts from 0 and skip blank lines; line numbers do not.
"""

from producer.readers.dataset import FORMATS, Dataset, read_dataset, read_items

__all__ = ["FORMATS", "Dataset", "read_dataset", "read_items"]
