package raw

import (
	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/image"
)

var _ image.Describer = Format{}

// Help implements image.Describer.
func (Format) Help() image.FormatHelp {
	return image.FormatHelp{
		Name:     formatName,
		Summary:  "a signature file beside any file, for a loader of your own or openssl; the image stays as it is",
		KeyTypes: []alg.KeyType{alg.P256, alg.Ed25519, alg.P384, alg.RSA3072, alg.RSA4096, alg.RSA2048},
		Options:  image.DescribeOptions(Options{}, optionTexts()),
		Trust:    image.DescribeOptions(Options{}, optionTexts()),
	}
}

func optionTexts() map[string]string {
	return map[string]string{
		"encoding": "of the signature file: der (the default), raw (r and s, for ECDSA), base64 or base64-raw",
	}
}
