from elbocli.api import DiffusionLoss as DiffusionLoss
from elbocli.api import draw as draw
from elbocli.api import open_dataset as open_dataset
from elbocli.api import open_run as open_run
from elbocli.api import prediction as prediction
from elbocli.api import read_losslog as read_losslog
from elbocli.api import sampler as sampler
from elbocli.api import schedule as schedule
from elbocli.api import score as score
from elbocli.api import variational_bound as variational_bound
from elbocli.api import weighting as weighting
from elbocli.core.adaptive import AdaptiveSchedule as AdaptiveSchedule
from elbocli.core.objective import LossTerms as LossTerms
from elbocli.core.objective import Objective as Objective
from elbocli.core.prediction import Prediction as Prediction
from elbocli.core.schedule import Schedule as Schedule
from elbocli.core.weighting import Weighting as Weighting
from elbocli.errors import ElboError as ElboError
from elbocli.files.dataset import Dataset as Dataset
from elbocli.files.losslog import LossLogArrays as LossLogArrays
from elbocli.files.losslog import LossLogWriter as LossLogWriter
from elbocli.runs.examples import normalised as normalised
from elbocli.runs.open import TrainedRun as TrainedRun
from elbocli.sampling.samplers import Sampler as Sampler
from elbocli.scoring.extractors import export_extractor as export_extractor
from elbocli.scoring.result import EvalResult as EvalResult

__version__: str
