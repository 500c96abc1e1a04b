"""Transfer learning for image classification on Keras 3 and TensorFlow: `run.py` is the command, `experiments/train.py` the story.

Three settings are read by TensorFlow and Keras once, when they are first imported, so they are made here, ahead of
every other module. A value that the user has already put into the environment wins.
"""

import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault(
    "TF_ENABLE_ONEDNN_OPTS", "1"
)  # off by default on CPUs without AVX512-VNNI; 1.3 times faster there
os.environ.setdefault(
    "TF_CPP_MIN_LOG_LEVEL", "3"
)  # else it reports a missing GPU as an error; devices.py says it better
