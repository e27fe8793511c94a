import streamlit as st

st.title("Actiscope")
