from . import posthoc as posthoc
from .config import Config as Config
from .head_io import load_head as load_head
from .head_io import save_head as save_head
from .heads import Head as Head
from .sampler import BiLevelSampler as BiLevelSampler
from .train import train_head as train_head
