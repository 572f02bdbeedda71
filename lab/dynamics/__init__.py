"""Learning processes: `Dynamics` for one hyperparameter point and one seed."""

from lab.dynamics.averaged import Averaged, Best, averaged, best_so_far
from lab.dynamics.bootstrap import Bootstrap, bootstrap
from lab.dynamics.central_flow import CentralFlow, central_flow, complementary
from lab.dynamics.descent import Descent, descent
from lab.dynamics.feedback import fed_back, feedback, feedback_matrices
from lab.dynamics.flow import Flow, gradient_flow
from lab.dynamics.followed import Followed, followed
from lab.dynamics.race import race, until_edge
from lab.dynamics.sharpness_aware import sharpness_aware

__all__ = [
    "Averaged",
    "Best",
    "Bootstrap",
    "CentralFlow",
    "Descent",
    "Flow",
    "Followed",
    "averaged",
    "best_so_far",
    "bootstrap",
    "central_flow",
    "complementary",
    "descent",
    "fed_back",
    "feedback",
    "feedback_matrices",
    "followed",
    "gradient_flow",
    "race",
    "sharpness_aware",
    "until_edge",
]
