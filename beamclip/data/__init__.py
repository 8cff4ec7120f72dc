"""Images and captions: shards, streaming, decoding, augmentation and the teacher cache."""
