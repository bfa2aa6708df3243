"""Parts of the method replaced for an experiment, one module each: `replacements()` names them."""
