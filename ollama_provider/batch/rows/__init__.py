"""Where rows come from, and what prompt each of them makes.

- `sources`: texts, mappings, files, globs and queries become rows.
- `formats`: which reader a file needs; `json_files`, `csv_files` and `parquet_files` read row by row, out of what
  `compression` and `text_files` make of the bytes.
- `documents`: text, Markdown, HTML, PDF and Word, a row or some pieces for each file.
- `snapshot`: the rows of a query are fetched once and kept in the batch's directory.
- `prompts`: templates that make the prompt of a row, or the messages of a chat.
- `image_folder`: the one folder that the images of rows are read from.
- `reader`: all of this for a batch, a chunk of prepared rows at a time.
"""
