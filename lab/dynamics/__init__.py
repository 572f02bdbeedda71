"""Learning processes: `Dynamics` for one hyperparameter point and one seed."""

from lab.dynamics.descent import Descent, descent

__all__ = ["Descent", "descent"]
