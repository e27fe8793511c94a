from pages.ui import catalogue, frame

with frame.page("Which method answers my question?"):
    catalogue.methods()
