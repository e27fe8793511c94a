from interp.model import LanguageModel
from interp.samples import PromptPair
from pages.ui import circuits, frame
from pages.ui.bar import bar
from pages.ui.bench import load, turn_to, turn_to_kind

with frame.page("Which parts did it, and how do they work together?"):
    turn_to_kind(PromptPair)
    model = load(LanguageModel)
    if model is not None:
        turn_to("circuits", "edge_attribution_patching")
        bar(model)
        circuits.working(model)
