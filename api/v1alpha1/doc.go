// Package v1alpha1 is Weft's API, group weft.dev. What the schema can check,
// the API server checks: a malformed VTEP is refused on its way in, and what
// passes is checked again by each daemon that reads it (overlay.ParseVTEP).
//
// The markers below steer `make generate`: deepcopy and CRD by controller-gen,
// package client by code-generator.
//
// +kubebuilder:object:generate=true
// +groupName=weft.dev
// +groupGoName=Weft
package v1alpha1
