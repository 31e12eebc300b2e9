"""`dpbench probe`: the paper's pilot studies (sections 3 and 4.3) as measurements with intervals."""
