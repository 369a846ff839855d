"""How gently a PACS is asked: at which hours, how many studies a minute, how many bytes a second."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, time, timedelta

from client.pacs_file import window

LONGEST_PAUSE_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hours:
    """A daily window in local time: begins at ``first``, ends before ``last``, over midnight too."""

    first: time
    last: time

    @classmethod
    def of(cls, text: str) -> "Hours":
        """Read ``HH:MM-HH:MM``. Raises ValueError."""
        first, last = window(text)
        return cls(first=first, last=last)

    def open_at(self, now: datetime) -> bool:
        """Whether *now* lies in the window."""
        at = now.time()
        if self.first < self.last:
            return self.first <= at < self.last
        return at >= self.first or at < self.last

    def seconds_to_wait(self, now: datetime) -> float:
        """Seconds until the window opens; 0 where it is open."""
        if self.open_at(now):
            return 0.0
        opening = now.replace(hour=self.first.hour, minute=self.first.minute, second=0, microsecond=0)
        if opening <= now:
            opening += timedelta(days=1)
        return (opening - now).total_seconds()


class Pace:
    """Spreads studies and bytes evenly over time, for all connections together.

    Guarantees: studies begin at least ``60 / studies_per_minute`` seconds apart; over any longer time the bytes are
    at most ``bytes_per_second`` times that time, plus what came in the last pause. A pause within a study is at most
    2 s, so that no connection times out because of it; the rest is waited for before the next study.

    Args:
        studies_per_minute: greater than 0.
        bytes_per_second: greater than 0, or None for no limit.
        clock: seconds that never go back.
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        studies_per_minute: float,
        bytes_per_second: float | None,
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], object],
    ) -> None:
        self._interval = 60.0 / studies_per_minute
        self._rate = bytes_per_second
        self._clock, self._sleep = clock, sleep
        self._lock = threading.Lock()
        self._next_study = self._paid_until = clock()

    def study(self) -> None:
        """Wait until the next study may begin."""
        with self._lock:
            now = self._clock()
            begin = max(now, self._next_study, self._paid_until)
            self._next_study = begin + self._interval
        if begin > now:
            self._sleep(begin - now)

    def received(self, num_bytes: int) -> None:
        """Say that so many bytes came, and wait for a while where that was too fast."""
        if self._rate is None:
            return
        with self._lock:
            now = self._clock()
            self._paid_until = max(now, self._paid_until) + num_bytes / self._rate
            ahead = self._paid_until - now
        if ahead > 0:
            self._sleep(min(ahead, LONGEST_PAUSE_SECONDS))
