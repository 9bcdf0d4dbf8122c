"""Alice (Jiang et al., ICCV 2023): heads, CASA, losses, student and teacher."""
