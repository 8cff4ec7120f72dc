"""Images and captions: ingest, shards, streaming, decoding and the embedded corpus."""
