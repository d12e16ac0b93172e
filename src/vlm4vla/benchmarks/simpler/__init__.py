"""SimplerEnv's Bridge tasks on ManiSkill 3, changed where it differs from what the paper's scores were measured on."""
