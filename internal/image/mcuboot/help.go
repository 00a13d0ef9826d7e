package mcuboot

import (
	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/image"
)

var _ image.Describer = Format{}

// Help implements image.Describer.
func (Format) Help() image.FormatHelp {
	return image.FormatHelp{
		Name:     formatName,
		Summary:  "MCUboot images as imgtool makes them: header, protected TLVs with the security counter, signature TLV; the options have imgtool's names",
		KeyTypes: []alg.KeyType{alg.P256, alg.Ed25519, alg.P384, alg.RSA3072, alg.RSA2048},
		Options:  image.DescribeOptions(Options{}, optionTexts()),
	}
}

func optionTexts() map[string]string {
	return map[string]string{
		"header-size":       "what the header is padded to (CONFIG_ROM_START_OFFSET); no default, because a wrong one gives an image that never starts",
		"pad-header":        "put a header before the payload; without it the payload begins with that many zero bytes, or with a header",
		"slot-size":         "bounds the image and its trailer; 0 leaves it unchecked",
		"align":             "write size of the flash: 1 (the default), 2, 4, 8, 16 or 32",
		"max-align":         "8, 16 or 32; the default is align, at least 8",
		"max-sectors":       "sectors of a slot, for the size of the trailer; 128 if left out",
		"overwrite-only":    "the bootloader overwrites instead of swapping: a smaller trailer",
		"pad":               "fill the slot and end it with the boot magic",
		"test":              "pad, and ask for a test swap",
		"confirm":           "pad, and mark the image as confirmed",
		"erased-val":        "what erased flash reads as: 0xff (the default) or 0",
		"version":           "major[.minor[.revision[+build]]]; the request's version if left out",
		"security-counter":  "a number, or auto to make it from the version; the request's counter if left out",
		"dependencies":      "other images of the device and the version that each must have at least",
		"custom-tlv":        "vendor TLVs for the protected area; the value is text, or hex behind 0x",
		"vid":               "UUID of the vendor",
		"cid":               "UUID of the device class",
		"load-addr":         "address in RAM that the image is copied to",
		"rom-fixed":         "address in flash that the image must run from",
		"non-bootable":      "the image is checked and not started",
		"public-key-format": "hash (the default), or full for MCUBOOT_HW_KEY",
		"sha":               "auto (the default), 256, 384 or 512",
		"pad-sig":           "pad ECDSA signatures, for MCUboot before 1.5",
		"endian":            "little; nothing else is made",
		"replace":           "take the signatures off a signed image and sign it anew",
	}
}
