"""Learning processes: `Dynamics` for one hyperparameter point and one seed."""

from lab.dynamics.bootstrap import Bootstrap, bootstrap
from lab.dynamics.central_flow import CentralFlow, central_flow, complementary
from lab.dynamics.descent import Descent, descent
from lab.dynamics.flow import Flow, gradient_flow
from lab.dynamics.followed import Followed, followed
from lab.dynamics.race import race, until_edge

__all__ = [
    "Bootstrap",
    "CentralFlow",
    "Descent",
    "Flow",
    "Followed",
    "bootstrap",
    "central_flow",
    "complementary",
    "descent",
    "followed",
    "gradient_flow",
    "race",
    "until_edge",
]
