"""Why one adapter trains at a time: a plain Trainer cannot resume a run with two live ones."""

import peft
import pytest
from transformers import Trainer, TrainingArguments

from tests.models import tiny

ROWS = [{"input_ids": [3, 4, 5, 6 + i], "labels": [3, 4, 5, 6 + i]} for i in range(8)]


def _trainer(folder, steps):
    options = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(tiny("llama", "causal_lm"), options)
    model.add_adapter("second", options)
    model.base_model.set_adapter(["default", "second"])
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        save_steps=1,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    return Trainer(model=model, args=arguments, train_dataset=ROWS)


def test_two_live_adapters_break_a_plain_resume(tmp_path):
    _trainer(tmp_path, steps=1).train()
    with pytest.raises(ValueError, match="doesn't match the size of optimizer's group"):
        _trainer(tmp_path, steps=2).train(resume_from_checkpoint=True)
