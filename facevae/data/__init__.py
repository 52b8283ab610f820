"""Pictures and labels, from folders, shards and tables to batches."""
