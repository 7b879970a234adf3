"""One reader of a model's structure, for groups, compaction, the doctor and walks along paths."""
