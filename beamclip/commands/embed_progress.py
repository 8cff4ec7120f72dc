"""The progress line of an embedding."""

import threading

from beamclip.commands.console import ProgressLine, format_duration, print_stage
from beamclip.data.lost_samples import FirstLost
from beamclip.training.channel import RemoteChannel
from beamclip.training.events import Embedded, Lost

SECONDS_BETWEEN_LOOKS = 0.5


class EmbeddingProgress:
    """Shows the actors' progress, in a thread: the main thread waits for the shards and for Ctrl-C."""

    def __init__(self, channel: RemoteChannel, samples: int) -> None:
        self.channel = channel
        self.samples = samples
        self.embedded = 0
        self.first = self.last = 0.0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="beamclip-progress", daemon=True)

    @property
    def seconds(self) -> float:
        """Seconds from the start of the first shard to the last batch, of those reported so far."""
        return self.last - self.first

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    def _watch(self) -> None:
        line = ProgressLine()
        lost = FirstLost()
        ended = False
        while not ended:
            ended = self.ended.wait(SECONDS_BETWEEN_LOOKS)
            for event in self.channel.take():
                match event:
                    case Embedded():
                        self._count(event)
                    case Lost(samples):
                        for _, text in lost.new(samples):
                            line.close()
                            print_stage("skipped", text)
            if self.embedded:
                line.show(self._text(), last=ended)
        line.close()

    def _count(self, event: Embedded) -> None:
        self.first = min(self.first or event.time, event.time)
        self.last = max(self.last, event.time)
        self.embedded += event.images

    def _text(self) -> str:
        rate = self.embedded / max(1e-9, self.seconds)
        eta = format_duration(max(0.0, (self.samples - self.embedded) / rate))
        return f"{self.embedded:,}/{self.samples:,} images  {rate:,.0f} img/s  eta {eta}"
