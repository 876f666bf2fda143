package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
	"github.com/google/go-containerregistry/pkg/v1"
)

// sbom lists what is in the image, in CycloneDX's format: the two programs and,
// by what the go command wrote into them, their modules.
func (o *options) sbom(p v1.Platform, programs []program, modules []module) ([]byte, error) {
	image := "pkg:oci/weft@" + o.version + "?arch=" + p.Architecture
	bom := cdx.NewBOM()
	bom.Metadata = &cdx.Metadata{
		Timestamp: o.created.Format(time.RFC3339),
		Component: &cdx.Component{
			BOMRef: image, Type: cdx.ComponentTypeContainer, Name: o.name, Version: o.version, Licenses: licence("Apache-2.0"),
		},
	}
	var components []cdx.Component
	refs := map[string]string{} // by module's path
	for _, m := range modules {
		if m.path == product {
			continue // the programs are of it
		}
		refs[m.path] = purl(m)
		components = append(components, cdx.Component{
			BOMRef: purl(m), Type: cdx.ComponentTypeLibrary, Name: m.path, Version: m.version,
			PackageURL: purl(m), Licenses: licence(m.licence), Properties: properties(m),
		})
	}
	of := cdx.Dependency{Ref: image, Dependencies: &[]string{}}
	dependencies := []cdx.Dependency{}
	for _, program := range programs {
		sum := sha256.Sum256(program.data)
		ref := "pkg:golang/" + program.info.Path + "@" + o.version
		components = append(components, cdx.Component{
			BOMRef: ref, Type: cdx.ComponentTypeApplication, Name: program.name, Version: o.version, PackageURL: ref,
			Licenses: licence("Apache-2.0"), Hashes: &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: hex.EncodeToString(sum[:])}},
		})
		uses := []string{refs[std]}
		for _, dep := range program.info.Deps {
			uses = append(uses, refs[dep.Path])
		}
		dependencies = append(dependencies, cdx.Dependency{Ref: ref, Dependencies: &uses})
		*of.Dependencies = append(*of.Dependencies, ref)
	}
	dependencies = append(dependencies, of)
	bom.Components, bom.Dependencies = &components, &dependencies
	text, err := encode(bom)
	if err != nil {
		return nil, err
	}
	// The number has to be this document's own, and the same each time.
	id := sha256.Sum256(text)
	id[6], id[8] = id[6]&0x0f|0x80, id[8]&0x3f|0x80 // version 8, RFC 9562 section 5.8
	bom.SerialNumber = fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", id[0:4], id[4:6], id[6:8], id[8:10], id[10:16])
	return encode(bom)
}

func encode(bom *cdx.BOM) ([]byte, error) {
	var b bytes.Buffer
	err := cdx.NewBOMEncoder(&b, cdx.BOMFileFormatJSON).SetPretty(true).SetEscapeHTML(false).EncodeVersion(bom, cdx.SpecVersion1_6)
	return b.Bytes(), err
}

func licence(expression string) *cdx.Licenses {
	if strings.Contains(expression, " ") {
		return &cdx.Licenses{{Expression: expression}}
	}
	return &cdx.Licenses{{License: &cdx.License{ID: expression}}}
}

// purl is a module's package URL.
func purl(m module) string {
	version := m.version
	if m.path == std {
		version = strings.TrimPrefix(version, "go")
	}
	return "pkg:golang/" + m.path + "@" + version
}

// properties gives the go.sum line's hash: it is one over the hashes of the
// module's files, and so none of a single file.
func properties(m module) *[]cdx.Property {
	if m.sum == "" {
		return nil
	}
	return &[]cdx.Property{{Name: "go.sum", Value: m.sum}}
}
