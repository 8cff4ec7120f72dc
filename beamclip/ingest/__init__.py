"""URL lists -> shards: img2dataset downloads, behind limits on hosts, time, bytes and memory."""

from beamclip.callable_room import make_callable

make_callable(__name__)
