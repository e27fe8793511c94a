from typing import Annotated

from interp.hooks import Block
from interp.method import Range, intervention
from interp.methods.steering._tasks import injecting, load, no_heads
from interp.methods.steering.soft_injection import PAPER
from interp.model import LanguageModel
from interp.samples import Prompt


@intervention("Inject a task", PAPER, needs=no_heads)
def inject_task(
    model: LanguageModel,
    sample: Prompt,
    *,
    task: str = "",
    share: Annotated[float, Range(0, 1)] = 0.0,
) -> Block | None:
    """Give heads at the last token of the prompt what they put out where examples show a task.

        z_lh <- (1 - s A_lh) z_lh + s A_lh E_lh,    s = share

    Only the last token of the prompt is changed, once; what is generated behind it sees it through attention.

    Args:
        task: The name of a task, or the key of one that was fitted; the model's first unless given.
        share: How much of it; 0 leaves the model as it is, 1 is what was fitted.

    Raises:
        Unsuitable: no such task, or another model's.

    Assumes:
        A prompt of the form the task was fitted on.

    Misleads:
        The mean over prompts holds whatever these share beside the task: the way of writing, the likeliest answer.
    """
    if share == 0:
        return None
    found = load(task, model)
    return model.edit(injecting(share * found.share.to(model.device), found.outputs.to(model.device)))
