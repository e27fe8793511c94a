from interp.model import VisionModel
from interp.samples import Image
from pages.ui import frame, pixels, workbench
from pages.ui.bar import bar
from pages.ui.bench import load, turn_to, turn_to_kind

with frame.page("Which pixels made the score?"):
    turn_to_kind(Image)
    model = load(VisionModel)
    if model is not None:
        turn_to("attribution", "deeplift", signed=True, view="superpixels", opacity=0.9)
        bar(model)
        workbench.notice()
        workbench.maps(model, lambda table, label: pixels.references(model))
        pixels.beside_captum(model)
        pixels.experiments()
