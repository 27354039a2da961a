"""The demo: real requests to real servers, through each balancer, while servers come and go."""
