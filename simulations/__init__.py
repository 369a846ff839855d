"""Many hospitals on one machine: scenarios, data preparation, baselines, reports. Nobody imports this package."""
