"""The contracts of `mhe.protocols`, each as a function that a plugin's own tests call."""
