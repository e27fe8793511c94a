from interp.model import Model
from interp.results import FeaturePage
from pages.ui import features, frame
from pages.ui.bar import bar
from pages.ui.bench import load, turn_to_kind

with frame.page("Which learned features fire, and what do they do?"):
    turn_to_kind(FeaturePage)
    model = load(Model)
    if model is not None:
        bar(model)
        features.working(model)
