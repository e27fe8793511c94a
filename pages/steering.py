from interp.directions import Direction
from interp.model import LanguageModel
from pages.ui import frame, steering
from pages.ui.bar import bar
from pages.ui.bench import load, turn_to_kind

with frame.page("What happens if I push it?"):
    turn_to_kind(Direction)
    model = load(LanguageModel)
    if model is not None:
        bar(model)
        steering.working(model)
