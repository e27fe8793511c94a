from interp.model import LanguageModel
from interp.samples import Prompt
from pages.ui import frame, prompts
from pages.ui.bar import bar
from pages.ui.bench import load, turn_to, turn_to_kind

with frame.page("What happens between the words?"):
    turn_to_kind(Prompt)
    model = load(LanguageModel)
    if model is not None:
        turn_to("reading", "logit_lens")
        bar(model)
        prompts.looking(model)
