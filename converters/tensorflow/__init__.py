"""Files of Keras and TensorFlow: configurations, weights, SavedModels, and their export."""
