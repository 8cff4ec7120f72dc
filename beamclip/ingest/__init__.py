"""URL lists -> shards: img2dataset downloads, behind limits on hosts, time, bytes and memory."""
