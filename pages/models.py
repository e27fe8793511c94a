from pages.ui import catalogue, frame

with frame.page("Which model do I look into?"):
    catalogue.models()
