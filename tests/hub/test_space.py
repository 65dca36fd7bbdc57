"""The Space of a finished run: what is in its folder, how it gets to the Hub, and the commands."""

import json
import re
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from about import Settings, read_card, read_settings
from classifier import Classifier, Question
from hf_transfer.command_line import main
from hf_transfer.config import UserError
from hf_transfer.evaluation.predict import classify_images, classify_texts
from hf_transfer.hub import space
from hf_transfer.hub.publish import files_to_publish
from hf_transfer.hub.space import assemble_space, choose_examples, demo_folder, pinned_version, publish_space
from hf_transfer.data.splits import Split
from tests.conftest import REPOSITORY
from tests.hub.contents import Repository
from tests.hub.stand_in import FREE, StandIn
from tests.space.conftest import trained
from pictures import decode
