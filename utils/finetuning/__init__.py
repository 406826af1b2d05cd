"""Fine-tuning with QLoRA: rows to a dataset, the recipe, the training run, and the adapter out and in again.

    data       prepare_chat_dataset: chat rows, tokenized, with the completion marked; rows that are too long are named
    recipe     qlora_config: rank, targets, NF4 and the compute dtype with its reason
    run        one run's rows and settings, and what tells it from another run
    training   train_qlora: one run that resumes after a kill, shrinks its batch when memory runs out and stops at a broken loss
    trainer    TRL's SFTTrainer with a loss that is right for every head, and checkpoints without pickle
    lean       an adapter's sum with fewer passes over memory, while a run trains
    identity   base_identity: which weights a model stands on
    state, guards, report   checkpoints without pickle, memory running out, and what a run says about itself
    adapters   save_adapter, load_adapter, merge_adapter: an adapter knows its base model and refuses another

Stands on transformers, PEFT, TRL and bitsandbytes; an adapter is a PEFT folder that those libraries load alone.
The method is QLoRA (Dettmers et al. 2023, arXiv:2305.14314) on LoRA (Hu et al. 2021, arXiv:2106.09685).
"""

from utils.finetuning.adapters import (
    AdapterError,
    WrongBaseError,
    load_adapter,
    merge_adapter,
    save_adapter,
)
from utils.finetuning.data import ChatDataset, DataReport, prepare_chat_dataset
from utils.finetuning.identity import BaseIdentity, base_identity
from utils.finetuning.recipe import QLoraConfig, qlora_config
from utils.finetuning.report import NonFiniteLossError, TrainingReport
from utils.finetuning.training import Trained, train_qlora

__all__ = ["AdapterError", "BaseIdentity", "WrongBaseError", "base_identity", "load_adapter", "merge_adapter", "save_adapter"]
__all__ += ["ChatDataset", "DataReport", "prepare_chat_dataset", "QLoraConfig", "qlora_config"]
__all__ += ["NonFiniteLossError", "Trained", "TrainingReport", "train_qlora"]
