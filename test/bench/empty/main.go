// Empty does nothing: its run time is what starting any Go program costs.
package main

func main() {}
