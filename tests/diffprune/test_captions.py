"""What a caption is, in every form of data: a text, the first of a list, the next column where one is empty."""

from test_data import encoded, refusal, told, write_jsonl, write_tar  # noqa: F401
