// Package sriov is about virtual functions (PCI Express base specification,
// chapter 9) and other NICs that a pod gets whole.
//
// A Sysfs finds devices; a State is all that Weft or a pod may change of one.
// Want says what it becomes in a pod, and Plan how to get from one state to
// another: into the pod, and back out of whatever a pod, a crash or a driver
// has made of it. All but Sysfs is pure; package vf carries the operations out.
package sriov
