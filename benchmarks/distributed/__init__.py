"""What a trainer of a distributed graph holds and waits for, by the number of partitions."""
