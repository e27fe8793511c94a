from interp.model import LanguageModel
from interp.results import TokenGrid
from pages.ui import frame, transport
from pages.ui.bar import bar
from pages.ui.bench import load, turn_to_kind

with frame.page("Is a feature carried, or made anew?"):
    turn_to_kind(TokenGrid)
    model = load(LanguageModel)
    if model is not None:
        bar(model)
        transport.working(model)
