"""A wish to stop that any thread can voice: a button, while the training runs in a thread where no interrupt arrives.

Carries the wish only. `resume.ResumableCheckpoint` hears it after the optimizer step that runs, saves that step and raises
`TrainingStopped`; signals of the main thread are for `surroundings.PatientSignals`.
"""

from __future__ import annotations

import threading


class StopRequest:
    """Asks a training to end after the optimizer step that runs, and to save it.

    Example:
        >>> stop = StopRequest()
        >>> threading.Thread(target=TrainingCoordinator(model, texts, stop=stop).run).start()
        >>> stop.ask()   # the thread's call raises TrainingStopped; the same call later goes on from that step
    """

    def __init__(self) -> None:
        self._asked = threading.Event()

    @property
    def asked(self) -> bool:
        """Whether somebody asked."""
        return self._asked.is_set()

    def ask(self) -> None:
        """Ask; a second time does nothing."""
        self._asked.set()

    def withdraw(self) -> None:
        """Take it back, as before the training goes on."""
        self._asked.clear()
